"""This node on disk: its enrolment, its knowledge of the other nodes, and cleanup after a killed agent."""
