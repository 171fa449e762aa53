// Package packages tests how packages are made: that nothing but the commit decides their bytes. What packages do on a machine is test/vm's.
package packages
