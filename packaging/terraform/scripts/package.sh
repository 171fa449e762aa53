# Run by user-data once, with a package's URL and SHA-256: installs it, or nothing if it is another file.
file=/root/wingman.${1##*.}
if command -v curl >/dev/null; then
	curl --fail --silent --show-error --location --retry 5 --output "$file" "$1"
else
	wget -q -t 5 -O "$file" "$1"
fi
echo "$2  $file" | sha256sum --check --quiet
case $file in
*.deb) DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Options::=--force-confold install "$file" ;;
*) dnf -y install "$file" ;;
esac
rm "$file"
