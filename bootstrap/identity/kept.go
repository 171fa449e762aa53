package identity

// KeptRoot returns where the operator's root file is kept once our link stands at path. It is what there is to go by when the store was wiped.
func KeptRoot(path string) string { return path + keptSuffix }
