//! Bucket changes the agent asks for.
