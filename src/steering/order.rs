//! From a place to regions, best first; and from a place to what pins and residency say of it.

use std::sync::Arc;

use crate::geo::Atlas;
use crate::steering::fleet::Fleet;

/// Place to order.
#[derive(Debug)]
pub struct Orders {}

impl Orders {
    /// Takes `previous` over when neither regions' coordinates and biases nor the atlas changed.
    pub fn compile(_fleet: &Fleet, _atlas: &Arc<Atlas>, _previous: Option<(&Arc<Orders>, &Arc<Atlas>)>) -> Arc<Orders> {
        todo!()
    }
}

/// Place to policies.
#[derive(Debug)]
pub struct Areas {}

impl Areas {
    /// Takes `previous` over when neither the areas named in the configuration nor the atlas changed.
    pub fn compile(_fleet: &Fleet, _atlas: &Arc<Atlas>, _previous: Option<(&Arc<Areas>, &Arc<Atlas>)>) -> Arc<Areas> {
        todo!()
    }
}
