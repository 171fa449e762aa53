# Run by user-data once for each instance, before any file is written.
if id istio-proxy >/dev/null 2>&1; then
	# cloud-init writes first and sets modes then: nobody may look in between.
	install -d -m 0700 -o istio-proxy -g istio-proxy /run/secrets/tokens
fi
if [ -d /var/lib/wingman ] && command -v wingman >/dev/null; then
	# The disk was another machine's: its key, certificate, names and rules are not this one's.
	enabled=$(systemctl is-enabled wingman.service || :)
	if ! wingman leave; then
		# Nothing starts an agent that would be the other machine, now or at a later boot.
		systemctl mask --now wingman.service
		exit 1
	fi
	if [ "$enabled" = enabled ]; then
		systemctl enable --quiet wingman.service
		systemctl start --no-block wingman.service
	fi
fi
