// Package packages tests how packages and releases are made: that nothing but the commit decides their bytes, and what is refused. What packages do on a
// machine is test/vm's.
package packages
