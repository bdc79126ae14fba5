/// The registry's error.
#[derive(Debug)]
pub struct Error;
