"""A campaign: rounds of active learning, their stages and records."""
