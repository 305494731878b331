"""What an agent needs of this machine in order to run somewhere else."""
