//! Updates of the desired state: checked whole, and put in force whole or not at all.

use service::desired::{Source, UpdateRefusal};

use super::Outcome;
use crate::{
    config::desired::{Applied, Update},
    control::{Answer, RequestRefusal},
    daemon::{Daemon, controller::Proposal},
};

impl Daemon {
    /// Puts a snapshot or delta in force. It is stored when this returns.
    pub(super) async fn apply(&mut self, update: &Update) -> Outcome {
        let config = &self.in_force.config;
        if config.source == Source::File {
            return Err(RequestRefusal::new(
                "conflict",
                "the desired state is that of the configuration file: remove [[tenant]], \
                 [[gateway]], [[peer]] and [[network]] there and reload; the objects in force \
                 stay, and can be changed then",
            ));
        }
        let old = self.desired();
        let new = old.prepare(update).map_err(|refusal| refused(&refusal))?;
        let (put, removed) = old.objects.replaced_by(&new.objects);
        let applied = Applied {
            revision: new.revision,
            put,
            removed,
        };
        if new == old {
            return Ok(Answer::Applied(applied));
        }
        let proposal = if new.objects == old.objects {
            let mut state = self.in_force.state.clone();
            state.desired = Some(Box::new(new));
            Proposal::state(state)
        } else {
            let config = config
                .with_objects(&new.objects)
                .map_err(|problems| refused(&UpdateRefusal::Invalid(problems)))?;
            self.proposal(config, Box::new(new))?
        };
        self.change(proposal).await?;
        self.metrics.applied();
        self.name_tenants_in_log();
        tracing::info!(
            revision = applied.revision,
            ?put,
            ?removed,
            "update applied"
        );
        Ok(Answer::Applied(applied))
    }
}

fn refused(refusal: &UpdateRefusal) -> RequestRefusal {
    let code = match refusal {
        UpdateRefusal::Invalid(_) => "invalid",
        _ => "conflict",
    };
    RequestRefusal::new(code, refusal.to_string())
}
