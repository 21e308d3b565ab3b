"""What tests disturb a store with, and measure its answers by."""
