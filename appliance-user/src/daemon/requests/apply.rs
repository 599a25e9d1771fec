//! Updates of the desired state: checked whole, and put in force whole or not at all.

use service::desired::{Source, UpdateRefusal};

use super::reload::{desired, proposal};
use crate::{
    config::{
        DesiredPage, Objects,
        desired::{Applied, Update},
    },
    control::{OBJECTS_PAGE, RequestRefusal},
    daemon::controller::{Controller, Proposal},
};

/// The change that a snapshot or delta makes, and the answer to it; `None`: it changes nothing.
///
/// # Errors
/// The refusal.
pub(super) fn check(
    controller: &Controller,
    update: &Update,
) -> Result<(Applied, Option<Proposal>), RequestRefusal> {
    let config = controller.config();
    if config.source == Source::File {
        return Err(RequestRefusal::new(
            "conflict",
            "the desired state is that of the configuration file: remove [[tenant]], \
             [[gateway]], [[peer]] and [[network]] there and reload; the objects in force \
             stay, and can be changed then",
        ));
    }
    let old = desired(controller);
    let new = old.prepare(update);
    let new = new.map_err(|refusal| RequestRefusal::from(&refusal))?;
    let (put, removed) = old.objects.replaced_by(&new.objects);
    let applied = Applied {
        revision: new.revision,
        put,
        removed,
    };
    if new == old {
        return Ok((applied, None));
    }
    let proposal = if new.objects == old.objects {
        let mut state = controller.state().clone();
        state.desired = Some(Box::new(new));
        Proposal::state(state)
    } else {
        let config = config
            .with_objects(&new.objects)
            .map_err(|problems| RequestRefusal::from(&UpdateRefusal::Invalid(problems)))?;
        proposal(controller, config, Box::new(new))?
    };
    Ok((applied, Some(proposal)))
}

/// A page of the objects in force.
///
/// # Errors
/// When `after` is no `next` of a page.
pub(super) fn page(
    controller: &Controller,
    after: Option<&str>,
    keys: bool,
) -> Result<Box<DesiredPage>, RequestRefusal> {
    let none = Objects::default();
    let (config, state) = (controller.config(), controller.state());
    let (source, revision, objects) = match (config.source, &state.desired) {
        (Source::File, _) => (Source::File, 0, &*config.objects),
        (_, Some(desired)) => (desired.source, desired.revision, &desired.objects),
        (_, None) => (Source::None, 0, &none),
    };
    let Some((mut objects, next)) = objects.page(after, OBJECTS_PAGE) else {
        let message = format!("after: {after:?}: write the `next` of the page before");
        return Err(RequestRefusal::new("bad-request", message));
    };
    if !keys {
        objects.hide_keys();
    }
    Ok(Box::new(DesiredPage {
        source,
        revision,
        objects,
        next,
    }))
}
