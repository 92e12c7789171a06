"""The comparison of arms: design, statistics, pages; no part of a campaign."""
