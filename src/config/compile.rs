//! Every check: from what is written to what works.
