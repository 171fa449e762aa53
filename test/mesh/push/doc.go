// Package push measures what a push of istiod costs the agent that stands between istiod and Envoy: wingman's next to Istio's.
//
// The control plane is the real one, with ten thousand services. Each agent runs on a machine of its own, one at a time, and a client
// plays Envoy on its socket: it subscribes, decodes and acknowledges in Envoy's order. It names Istio's extensions in its node, so
// that pushes pass as bytes, or those of a stock Envoy alone, so that wingman takes Istio's filters out.
//
// What is compared: CPU time of the agent's process by the kernel's clock for it, peak of its resident set (VmHWM, reset before each
// step), and how long until the client has the whole push. Read the CPU and memory as ratios: agents take turns in one run, on one
// machine. The time has istiod's own work in it, the same for all.
package push
