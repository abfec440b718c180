"""From a flow to the plan that runs: bound, checked and drawn before a worker starts."""
