#!/bin/sh
# Writes user-data for cloud-init from the folder that `istioctl x workload entry configure` made.
#
#   user-data.sh DIR >user-data                                            an image with the package in it
#   user-data.sh --apt URL --key FILE [--suite stable] DIR >user-data      a Debian or Ubuntu without it
#   user-data.sh --yum URL --key FILE DIR >user-data                       a Fedora, RHEL or the like
#   user-data.sh --package URL --sha256 SUM … DIR >user-data               either, by .deb or .rpm files: wingman, and wingman-envoy
#
#   --settings FILE     becomes /etc/wingman/wingman.yaml, in the place of what an image has there
#   --token-from CLOUD  gce, aws or azure: no token is in the user-data, the machine asks its cloud for one; that is its whole wingman.yaml
#
# What it writes holds istioctl's token, unless --token-from is given: docs/automation.md says who can read it. It needs base64, grep, readlink, sed and tr.
set -eu
umask 077
here=$(dirname "$(readlink -f "$0")")
fail() {
	printf 'user-data.sh: %s\n' "$*" >&2
	exit 2
}

# folder DIR
folder() {
	[ -z "$dir" ] || fail "found $dir and $1, expected one folder"
	dir=$1
}

apt= yum= key= suite=stable packages= sums= settings= source= dir=
while [ $# -gt 0 ]; do
	# Several packages are a list by blanks.
	case $1 in --package | --sha256) case ${2:-} in *[[:space:]]*) fail "$1: found a blank, a character that no URL has, in $2" ;; esac ;; esac
	case $1 in
	--apt | --yum | --key | --suite | --package | --sha256 | --settings | --token-from)
		[ $# -gt 1 ] && [ -n "$2" ] || fail "$1 needs a value"
		case $1 in
		--apt) apt=$2 ;;
		--yum) yum=$2 ;;
		--key) key=$2 ;;
		--suite) suite=$2 ;;
		--package) packages="$packages $2" ;;
		--sha256) sums="$sums $2" ;;
		--settings) settings=$2 ;;
		--token-from) source=$2 ;;
		esac
		shift 2
		;;
	-h | --help)
		sed -n '2,/^set/{s/^# \{0,1\}//p;}' "$0"
		exit 0
		;;
	--)
		shift
		for one; do folder "$one"; done
		break
		;;
	-*) fail "unknown option $1" ;;
	*)
		folder "$1"
		shift
		;;
	esac
done

# Every problem at once.
problems=
problem() { problems="$problems
  $*"; }
[ -n "$dir" ] || fail "expected the folder that istioctl made; see --help"
[ -d "$dir" ] || fail "$dir is no folder"
kinds=0
for one in "$apt" "$yum" "$packages"; do [ -z "$one" ] || kinds=$((kinds + 1)); done
[ $kinds -le 1 ] || problem "--apt, --yum and --package: expected one of them"
if [ -n "$apt$yum" ]; then
	[ -n "$key" ] || problem "--key: expected the file with the repository's public key, found none"
elif [ -n "$key" ]; then
	problem "--key: expected with --apt or --yum alone"
fi
set -f # lists by blanks follow
for url in "$apt" "$yum" $packages; do
	case $url in
	'' | http://?* | https://?*) ;;
	*) problem "$url: expected a URL with http or https" ;;
	esac
	case $url in *[!-A-Za-z0-9._~:/?#@!\&+,\;=%]*) problem "$url: found a character that no URL has" ;; esac
done
case $suite in *[!-A-Za-z0-9._/]*) problem "--suite: found $suite, expected a name" ;; esac
kinds= counted=0
for one in $packages; do
	counted=$((counted + 1))
	case $one in
	*.deb | *.rpm) ;;
	*) problem "--package: found $one, expected a .deb or .rpm" ;;
	esac
	case $kinds in '' | "${one##*.}") kinds=${one##*.} ;; *) problem "--package: found $one beside a .$kinds, expected files of one kind" ;; esac
done
for one in $sums; do
	counted=$((counted - 1))
	case $one in
	*[!0-9a-f]*) problem "--sha256: found $one, expected 64 lower-case hexadecimal digits" ;;
	*) [ ${#one} = 64 ] || problem "--sha256: found ${#one} digits, expected 64" ;;
	esac
done
[ $counted = 0 ] || problem "--sha256: expected one for each --package"
case $source in
'') token=istio-token ;;
gce | aws | azure)
	token=
	[ -z "$settings" ] || problem "--token-from and --settings: expected one of them; name identity.credentials in the settings, and leave istio-token out of the folder"
	;;
*)
	token=
	problem "--token-from: found $source, expected gce, aws or azure"
	;;
esac
if [ -n "$settings" ] && [ ! -e "$dir/istio-token" ]; then
	token= # the settings name where it comes from
	printf 'user-data.sh: %s has no istio-token, and the user-data has none\n' "$dir" >&2
fi
check() {
	if [ ! -f "$1" ] || [ ! -s "$1" ]; then
		problem "$1: is not there, or empty"
	elif [ ! -r "$1" ]; then
		problem "$1: may not be read"
	fi
}
for file in cluster.env mesh.yaml hosts root-cert.pem $token; do
	check "$dir/$file"
done
for file in "$key" "$settings" "$here/prepare.sh" "$here/package.sh" "$here/join.sh"; do
	[ -z "$file" ] || check "$file"
done
if [ -f "$key" ] && [ -r "$key" ]; then
	if ! grep -q '^-----BEGIN PGP PUBLIC KEY BLOCK-----$' <"$key" || grep -q 'PRIVATE KEY' <"$key" || [ "$(LC_ALL=C tr -d '\t\n -~' <"$key" | wc -c)" -gt 0 ]; then
		problem "$key: expected a public key as gpg --armor --export writes it"
	fi
fi
[ -z "$problems" ] || fail "nothing written:$problems"

# indented FILE SPACES: with one newline at its end.
indented() {
	lines=$(cat <"$1")
	printf '%s\n' "$lines" | sed "s/^\(.\)/$2\1/"
}

# file PATH OWNER MODE <content
file() {
	printf '  - path: %s\n    owner: %s\n    permissions: "%s"\n    encoding: b64\n' "$1" "$2" "$3"
	[ -z "${4:-}" ] || printf '    defer: true\n'
	encoded=$(base64)
	printf '    content: '
	printf '%s\n' "$encoded" | tr -d '\n'
	echo
}

# script FILE ARGUMENT …: one command of runcmd, the script with its arguments.
script() {
	name=$1
	shift
	printf '  - - sh\n    - -euc\n    - |\n'
	indented "$here/$name.sh" '      '
	printf '    - wingman-%s\n' "$name"
	for argument; do printf '    - "%s"\n' "$argument"; done
}

stock=$apt$yum$packages
render() {
	printf '#cloud-config\n'
	[ -z "$token" ] || printf '# Holds a token of the mesh: keep it from everybody who may not be this machine.\n'
	printf 'bootcmd:\n  - - cloud-init-per\n    - instance\n    - wingman-prepare\n    - sh\n    - -euc\n    - |\n'
	indented "$here/prepare.sh" '      '
	if [ -n "$apt" ]; then
		printf 'apt:\n  sources:\n    wingman:\n      source: deb [signed-by=$KEY_FILE] %s %s main\n      key: |2\n' "$apt" "$suite"
		indented "$key" '        '
	fi
	if [ -n "$yum" ]; then
		printf 'yum_repos:\n  wingman:\n    name: Wingman\n    baseurl: %s\n    enabled: true\n    gpgcheck: true\n    repo_gpgcheck: true\n    gpgkey: file:///etc/pki/rpm-gpg/RPM-GPG-KEY-wingman\n' "$yum"
	fi
	[ -z "$apt$yum" ] || printf 'packages:\n  - wingman\n'
	printf 'write_files:\n'
	[ -z "$yum" ] || file /etc/pki/rpm-gpg/RPM-GPG-KEY-wingman root:root 0644 <"$key"
	# After the package, whose own it replaces.
	if [ -n "$settings" ]; then
		file /etc/wingman/wingman.yaml root:root 0644 ${stock:+defer} <"$settings"
	elif [ -n "$source" ]; then
		printf 'identity: {credentials: [%s]}\n' "$source" | file /etc/wingman/wingman.yaml root:root 0644 ${stock:+defer}
	fi
	if [ -n "$stock" ]; then
		for name in cluster.env mesh.yaml hosts root-cert.pem $token; do
			file "/root/wingman-bundle/$name" root:root 0600 <"$dir/$name"
		done
	else
		file /var/lib/istio/envoy/cluster.env root:root 0644 <"$dir/cluster.env"
		file /etc/istio/config/mesh root:root 0644 <"$dir/mesh.yaml"
		file /var/lib/istio/envoy/hosts root:root 0644 <"$dir/hosts"
		file /etc/certs/root-cert.pem root:root 0644 <"$dir/root-cert.pem"
		# Last: who waits for it finds the rest.
		[ -z "$token" ] || file /run/secrets/tokens/istio-token istio-proxy:istio-proxy 0600 <"$dir/istio-token"
	fi
	printf 'runcmd:\n'
	if [ -n "$stock" ]; then
		if [ -n "$packages" ]; then
			set --
			rest=$sums
			for one in $packages; do
				rest=${rest# }
				set -- "$@" "$one" "${rest%% *}"
				case $rest in *' '*) rest=${rest#* } ;; esac
			done
			script package "$@"
		fi
		script join
	else
		printf '  - - systemctl\n    - enable\n    - --now\n    - wingman.service\n'
	fi
}

# As a command of its own: behind && or || a failure in it would end nothing.
text=$(
	set -e
	render
	echo .
)
text=${text%.}
size=${#text}
[ "$size" -le 16384 ] || printf 'user-data.sh: %s bytes of user-data, and AWS takes 16384: compress them with gzip, which cloud-init reads as well\n' "$size" >&2
printf '%s' "$text"
