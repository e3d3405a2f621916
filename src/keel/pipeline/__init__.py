"""The stages, to be read in the order sft, collect, reward, rollouts, ppo, evaluate."""
