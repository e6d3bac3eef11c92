"""Programs that compare runs: ablation, ranking by people, reports."""
