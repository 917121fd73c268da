"""The client's side: an organisation's answers to messages, written for a cohort of K clients."""
