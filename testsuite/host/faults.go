//go:build linux

package host

import "fmt"

// The faults of a host's network. Each is a table of its own in the host's namespace, so that they can be together, and none is seen
// outside; what the host runs goes on. They stay over a loss of power, as what happens to a cable does.

// Partition drops everything that comes to the host and goes from it. Connections stay, and are told nothing.
func (h *Host) Partition() error {
	return h.drop("partition", `iifname "eth0"`, `oifname "eth0"`)
}

// DropDNS drops every question to a DNS server and every answer, of the host and of what runs on it.
func (h *Host) DropDNS() error {
	const dns = "meta l4proto { tcp, udp } th "
	return h.drop("dns", `iifname "eth0" `+dns+"sport 53", `oifname "eth0" `+dns+"dport 53")
}

// Lossy drops a share of all packets in each direction at random; percent is from 1 to 99.
func (h *Host) Lossy(percent int) error {
	if percent < 1 || percent > 99 {
		return fmt.Errorf("losing %d %% of the packets of %s: want 1 to 99", percent, h.Name)
	}
	random := fmt.Sprintf(" numgen random mod 100 < %d", percent)
	return h.drop("loss", `iifname "eth0"`+random, `oifname "eth0"`+random)
}

func (h *Host) drop(name, in, out string) error {
	rules := fmt.Sprintf(`table inet hf_%[1]s
delete table inet hf_%[1]s
table inet hf_%[1]s {
	chain in {
		type filter hook prerouting priority -300
		%[2]s counter drop
	}
	chain out {
		type filter hook postrouting priority 300
		%[3]s counter drop
	}
}
`, name, in, out)
	if err := h.net.run(rules, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("%s of %s: %w", name, h.Name, err)
	}
	return nil
}

// Slow bounds the host's network to a rate in each direction, in kilobits a second; at least 64.
func (h *Host) Slow(kilobits int) error {
	if kilobits < 64 {
		return fmt.Errorf("slowing %s to %d kbit/s: want 64 or more", h.Name, kilobits)
	}
	for _, end := range []struct {
		in  *namespace
		dev string
	}{{h.net, "eth0"}, {h.network.ns, h.veth}} {
		// Large enough for a whole packet of segments that the interface takes at once.
		if err := end.in.run("", "tc", "qdisc", "replace", "dev", end.dev, "root", "tbf", "rate", fmt.Sprintf("%dkbit", kilobits), "burst", "64kb", "latency", "400ms"); err != nil {
			return fmt.Errorf("slowing %s: %w", h.Name, err)
		}
	}
	return nil
}

// Heal ends all faults of the network. It is no error when there is none.
func (h *Host) Heal() error {
	rules := ""
	for _, name := range []string{"partition", "dns", "loss"} {
		rules += fmt.Sprintf("table inet hf_%[1]s\ndelete table inet hf_%[1]s\n", name)
	}
	if err := h.net.run(rules, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("healing %s: %w", h.Name, err)
	}
	for _, end := range []struct {
		in  *namespace
		dev string
	}{{h.net, "eth0"}, {h.network.ns, h.veth}} {
		// A veth has no queue of its own by default, and deleting none is an error: one that passes everything is put there.
		if err := end.in.run("", "tc", "qdisc", "replace", "dev", end.dev, "root", "pfifo"); err != nil {
			return fmt.Errorf("healing %s: %w", h.Name, err)
		}
	}
	return nil
}
