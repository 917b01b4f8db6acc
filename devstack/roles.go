package devstack

// StorageRole is the command of the holdfast program that serves the stack's GCS emulator.
const StorageRole = "storage-emulator"

// ProductRoles are the command lines by which the holdfast program takes each role. What a role needs beyond them it finds
// in the stack's description. Who needs other children adjusts what these return.
func ProductRoles() Roles {
	return Roles{
		Storage: func(_ StackFile, dir, listen, bucket string) Command {
			return Command{Args: []string{StorageRole, "--dir", dir, "--listen", listen, "--bucket", bucket}}
		},
		Control: func(file StackFile) Command {
			return Command{Args: withMetrics(file, controlName, "worker", "--control")}
		},
		Node: func(file StackFile, node, dir string) Command {
			return Command{Args: withMetrics(file, node, "worker", "--node", node, "--data-dir", dir)}
		},
	}
}

func withMetrics(file StackFile, role string, args ...string) []string {
	if address := file.Metrics[role]; address != "" {
		args = append(args, "--metrics-address", address)
	}
	return args
}
