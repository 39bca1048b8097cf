"""Where the trained text of a conversation stands: chat templates rendered, marked and checked."""
