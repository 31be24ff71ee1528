"""What this node knows now, as status, startup progress and the doctor's facts."""
