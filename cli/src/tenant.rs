//! The tenant of commands that are about one tenant or about all.

use clap::Args;

use crate::Session;

/// The options of such a command.
#[derive(Args)]
pub struct Choice {
    /// Show only this tenant and its objects; without it, those of the tenant in CAUSEWAY_TENANT or
    /// in the context.
    #[arg(long, short, conflicts_with = "all_tenants")]
    tenant: Option<String>,
    /// Show the objects of all tenants and of the provider, whatever the context says.
    #[arg(long)]
    all_tenants: bool,
}

impl Choice {
    /// The tenant, or `None` for all: that of the command line, of the environment, or of the
    /// context.
    pub fn of(&self, session: &Session) -> Option<String> {
        if self.all_tenants {
            return None;
        }
        let of_environment = || {
            let tenant = std::env::var("CAUSEWAY_TENANT").ok();
            tenant.filter(|tenant| !tenant.is_empty())
        };
        let of_command = self.tenant.clone();
        of_command
            .or_else(of_environment)
            .or_else(|| session.tenant())
    }

    /// Whether the command line names a tenant.
    pub const fn is_given(&self) -> bool {
        self.tenant.is_some()
    }
}
