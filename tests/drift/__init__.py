"""The drift matrix: what somebody may change on a server behind r1prov's back, and what `r1prov up` says and does about it."""
