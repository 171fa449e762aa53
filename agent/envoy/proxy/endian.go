package proxy

import (
	"encoding/binary"
)

// nativeIsLittle is this machine's byte order, which the kernel's tables of sockets are in.
var nativeIsLittle = binary.NativeEndian.Uint16([]byte{1, 0}) == 1
