# Run by user-data once, when the package is in: what it wrote for istioctl's files becomes a member of the mesh.
bundle=/root/wingman-bundle
trap 'rm -rf "$bundle"' EXIT # however this ends: a token is in it
status=0
wingman join "$bundle" || status=$?
case $status in
0 | 3) ;; # a member, ready or degraded
*)
	# Not now: the files are put in place if there is nothing wrong with them, and the agent goes on trying.
	wingman join --offline "$bundle"
	systemctl start wingman.service
	exit "$status" # cloud-init's own status tells
	;;
esac
