"""The mixed reward: five verifiers, no array framework."""
