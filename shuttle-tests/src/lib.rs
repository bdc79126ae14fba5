//! x
#![cfg(weighbridge_shuttle)]
