package stock

import (
	"testing"

	"wingman/agent/envoy/envoytest"
)

func TestMain(m *testing.M) { envoytest.Main(m) }
