"""The paper's question, SFT or RL: arms in order, each evaluated alike, and what they came to."""
