"""A transfer of the weights under faults of servers, links, disks and power, each at points that a seed chooses (`make faults`)."""
