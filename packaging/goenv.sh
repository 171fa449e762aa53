# Go's settings as all that is shipped is built; the scripts here read it. Those that say where modules and caches are stay as they are, the others would
# change the bytes. What is not empty here also wins over "go env -w"; no value of GOEXPERIMENT stands for none.
unset GOEXPERIMENT GOOS GOARCH
export GOAMD64=v1 GOARM64=v8.0 GOFIPS140=off GOFLAGS=-mod=readonly GOWORK=off
if [ -n "$(${GO:-go} env GOEXPERIMENT)" ]; then
	echo "this toolchain has experiments switched on, and what it builds nobody else could: go env -u GOEXPERIMENT" >&2
	exit 1
fi
