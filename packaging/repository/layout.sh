#!/bin/sh
# Lays packages out as signed repositories, for apt and for dnf: static files for any web server.
#
#   packaging/repository/layout.sh DIR [PACKAGE …]
#
# PACKAGE is a .deb or an .rpm. What DIR has already stays, so that old versions can be had for a downgrade. Without a PACKAGE only the indexes are made anew:
# after a package was removed by hand, or to sign again. A package that was published is never changed. Indexes come after what they name, and the signed list of
# them last, so a machine that asks meanwhile sees the former state or the new one. A second run with the same packages changes nothing.
#
# KEY names the OpenPGP key to sign by, in GNUPGHOME: a fingerprint or an address. SUITE (stable), COMPONENT (main) and ORIGIN (Wingman) are apt's. VALID_DAYS,
# when set, is how long apt trusts its index: run again before that.
#
# Leaves in DIR: apt (pool, dists/SUITE), yum (ARCH/*.rpm, repodata), wingman.asc (the public key).
# Needs gpg and flock; apt-ftparchive (apt-utils) and xz for .deb; createrepo_c, rpm and rpmsign for .rpm.
set -eu
umask 022
export LC_ALL=C TZ=UTC

die() {
	echo "layout.sh: $*" >&2
	exit 1
}
need() { command -v "$1" >/dev/null 2>&1 || die "$1 is needed: install $2"; }

[ $# -gt 0 ] || die "usage: layout.sh DIR [PACKAGE …]"
[ -n "${KEY:-}" ] || die "KEY is not set: name the key to sign by, one of gpg --list-secret-keys"
need gpg gnupg
need flock util-linux
gpg --batch --list-secret-keys "$KEY" >/dev/null 2>&1 || die "there is no secret key $KEY in ${GNUPGHOME:-$HOME/.gnupg}"
dir=$1
shift
suite=${SUITE:-stable} component=${COMPONENT:-main} origin=${ORIGIN:-Wingman}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
# One at a time: two would sign each other's halves.
exec 9<"$dir"
flock -n 9 || die "another run is at work in $dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# put FILE PATH: whole at once, for a web server to read whatever the mode of the package that was handed in.
put() {
	mkdir -p "$(dirname "$2")"
	cp "$1" "$2.new"
	chmod 0644 "$2.new"
	mv "$2.new" "$2"
}

# stage FILE PATH SUM: has a package ready for its place in DIR. SUM prints what makes a file of that name the same package.
stage() {
	for there in "$dir/$2" "$work/new/$2"; do
		if [ -e "$there" ] && [ "$($3 "$1")" != "$($3 "$there")" ]; then
			die "$there is there with other content, which machines may have: give the new package another version or release"
		fi
	done
	[ -e "$dir/$2" ] || put "$1" "$work/new/$2"
}

sign() { gpg --batch --yes --no-tty --local-user "$KEY" --digest-algo SHA512 "$@"; }
# signed SIGNATURE [FILE]: whether it was made by KEY.
signed() { gpg --batch --no-tty --status-fd 1 --verify "$@" 2>/dev/null | grep -q "^\[GNUPG:\] VALIDSIG .*$fingerprint"; }
fingerprint=$(gpg --batch --with-colons --list-keys "$KEY" | awk -F: '$1 == "fpr" { print $10; exit }')

contents() { sha256sum <"$1"; }
# An .rpm's header has the digest of its payload; the signature is outside of both.
header() { rpm --query --package --nosignature --queryformat '%{SHA256HEADER}' "$1"; }

# Everything is looked at, and compared with what is there, before anything is published.
for package; do
	[ -f "$package" ] || die "there is no file $package"
	case $package in
	*.deb) need apt-ftparchive apt-utils && need xz xz-utils && need dpkg-deb dpkg && dpkg-deb --field "$package" Package >/dev/null ;;
	*.rpm) need createrepo_c createrepo-c && need rpm rpm && need rpmsign rpm && header "$package" >/dev/null ;;
	*) die "$package: expected a .deb or an .rpm" ;;
	esac
done
# A package's place is named by what it says of itself: apt-ftparchive goes by the architecture in a file's name.
for package; do
	case $package in
	*.deb)
		field() { dpkg-deb --field "$package" "$1"; }
		name=$(field Package) version=$(field Version) arch=$(field Architecture)
		stage "$package" "apt/pool/$component/$(printf %.1s "$name")/$name/${name}_${version#*:}_$arch.deb" contents
		;;
	*.rpm)
		cp "$package" "$work/signed.rpm"
		GPG_TTY=none rpmsign --define "__gpg $(command -v gpg)" --define "_gpg_name $KEY" --addsign "$work/signed.rpm" >/dev/null
		stage "$work/signed.rpm" "yum/$(rpm --query --package --nosignature --queryformat '%{ARCH}/%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm' "$package")" header
		;;
	esac
done
# None is refused: all are published.
mkdir -p "$work/new"
(cd "$work/new" && find . -type f) | while read -r file; do
	put "$work/new/$file" "$dir/$file"
done
gpg --batch --armor --export "$KEY" >"$work/wingman.asc"
cmp -s "$work/wingman.asc" "$dir/wingman.asc" || put "$work/wingman.asc" "$dir/wingman.asc"

# apt: an index for each architecture, under its name and under that of its hash, which a machine that read an older Release still finds.
if [ -d "$dir/apt/pool" ]; then
	need apt-ftparchive apt-utils
	need xz xz-utils
	cd "$dir/apt"
	dist=$work/dist
	architectures=$(find pool -name '*.deb' | sed 's/.*_//; s/\.deb$//' | grep -v '^all$' | sort -u | tr '\n' ' ' | sed 's/ $//')
	architectures=${architectures:-all}
	for arch in $architectures; do
		index=$dist/$component/binary-$arch
		mkdir -p "$index"
		apt-ftparchive -o APT::FTPArchive::MD5=false -o APT::FTPArchive::SHA1=false -o APT::FTPArchive::AlwaysStat=true --arch "$arch" packages pool >"$index/Packages"
		gzip -9 -n -k "$index/Packages"
		xz -9 -k "$index/Packages"
	done
	cat >"$work/release.conf" <<-EOF
		APT::FTPArchive::Release { Origin "$origin"; Label "$origin"; Suite "$suite"; Codename "$suite"; Components "$component";
		  Architectures "$architectures"; Acquire-By-Hash "yes"; MD5 "false"; SHA1 "false"; };
	EOF
	if [ -n "${VALID_DAYS:-}" ]; then
		echo "APT::FTPArchive::Release::ValidTime \"$((VALID_DAYS * 86400))\";" >>"$work/release.conf"
	fi
	apt-ftparchive -c "$work/release.conf" release "$dist" >"$work/Release"
	to=$dir/apt/dists/$suite
	undated() { grep -v -e '^Date:' -e '^Valid-Until:' "$1"; }
	if [ -n "${VALID_DAYS:-}" ] || [ ! -f "$to/Release" ] || [ "$(undated "$work/Release")" != "$(undated "$to/Release")" ] || grep -q '^Valid-Until:' "$to/Release" ||
		! signed "$to/InRelease" || ! signed "$to/Release.gpg" "$to/Release"; then
		(cd "$dist" && find . -type f) | while read -r file; do
			put "$dist/$file" "$to/$(dirname "$file")/by-hash/SHA256/$(sha256sum <"$dist/$file" | cut -d' ' -f1)"
			put "$dist/$file" "$to/$file"
		done
		sign --clearsign --output "$work/InRelease" "$work/Release"
		sign --armor --detach-sign --output "$work/Release.gpg" "$work/Release"
		put "$work/Release.gpg" "$to/Release.gpg"
		put "$work/Release" "$to/Release"
		put "$work/InRelease" "$to/InRelease"
		echo "apt: $(grep -h '^Package:' "$dist"/*/*/Packages | wc -l) packages for $architectures"
	fi
fi

# dnf: createrepo_c names its files by their hashes; repomd.xml names them.
if [ -d "$dir/yum" ]; then
	need createrepo_c createrepo-c
	cd "$dir/yum"
	find . -name '*.rpm' | sort | xargs sha256sum >"$work/packages"
	to=$dir/yum/repodata
	if ! cmp -s "$work/packages" "$to/packages.sha256" || ! signed "$to/repomd.xml.asc" "$to/repomd.xml"; then
		mkdir "$work/yum"
		createrepo_c --quiet --no-database --outputdir "$work/yum" "$dir/yum"
		for file in "$work/yum/repodata"/*-*; do
			put "$file" "$to/$(basename "$file")"
		done
		sign --armor --detach-sign --output "$work/repomd.xml.asc" "$work/yum/repodata/repomd.xml"
		put "$work/repomd.xml.asc" "$to/repomd.xml.asc"
		put "$work/yum/repodata/repomd.xml" "$to/repomd.xml"
		put "$work/packages" "$to/packages.sha256"
		echo "yum: $(wc -l <"$work/packages") packages"
	fi
fi
