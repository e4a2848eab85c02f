"""scripts/fleet: what the fleets do now (status), and what they left behind (orphans)."""
