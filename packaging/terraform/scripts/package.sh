# Run by user-data once, with URL and SHA-256 of each package: installs all of them, or nothing if one is another file.
dir=/root/wingman-packages
trap 'rm -rf "$dir"' EXIT
install -d -m 0700 "$dir"
while [ $# -gt 0 ]; do
	kind=${1##*.}
	file=$dir/$#.$kind
	if command -v curl >/dev/null; then
		curl --fail --silent --show-error --location --retry 5 --output "$file" "$1"
	else
		wget -q -t 5 -O "$file" "$1"
	fi
	echo "$2  $file" | sha256sum --check --quiet
	shift 2
done
case $kind in
deb) DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Options::=--force-confold install "$dir"/*.deb ;;
*) dnf -y install "$dir"/*.rpm ;;
esac
