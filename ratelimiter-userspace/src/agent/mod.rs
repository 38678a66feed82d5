//! The composition root: builds, starts and drains the agent.
