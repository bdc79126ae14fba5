//! Model checks of weighbridge's concurrent protocols.
