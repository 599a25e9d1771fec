//! Updates of the desired state of a gateway. The rules of revisions are those of every daemon.

use crate::objects::{Ids, Objects};

/// A whole state.
pub type Snapshot = service::desired::Snapshot<Objects>;
/// A difference between two states.
pub type Delta = service::desired::Delta<Objects, Ids>;
/// Either of both, as it is sent.
pub type Update = service::desired::Update<Objects, Ids>;
