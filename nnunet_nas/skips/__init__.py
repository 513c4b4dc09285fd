"""Skip connections to compare with: attention gates, residual attention, nested dense skips."""
