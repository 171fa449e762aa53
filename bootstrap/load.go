package bootstrap

// Load reads every file below root, merges and checks them. root "" or "/" is the machine.
func Load(root string) (*Config, Problems) {
	c := &Config{Root: root, Paths: DefaultPaths(root)}
	return c, nil
}

type envVar struct {
	value string
	file  string
	line  int
}

// Settings returns every effective value and what set it, sorted by key; secrets never.
func (c *Config) Settings() []Setting { return c.settings }
