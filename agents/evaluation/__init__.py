"""What a policy is worth: metrics of episodes, and reports of metrics."""
