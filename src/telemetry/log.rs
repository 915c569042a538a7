//! Set-up of the process log.
