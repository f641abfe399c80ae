"""What a cluster does when something else is going on: each module one scenario, every figure beside its goal."""
