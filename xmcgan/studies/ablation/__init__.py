"""The ablation table: which loss helps, and by how much."""
