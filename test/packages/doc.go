// Package packages tests how packages and releases are made: that nothing but the commit decides their bytes, what is refused, and
// what the script does that runs after a removal. What packages do on a machine is test/vm's.
package packages
