//! Modes of XDP: the setting in a configuration file, and the mode of an attached program.

/// The mode in which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the kernel's generic hook, after the allocation of an skb.
    Generic,
}

impl AttachMode {
    /// Both modes, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The name in configurations, in status and in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// The mode of a name; `None` for any other text.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// The mode that a configuration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Native XDP where the driver has it. Elsewhere the daemon uses its fallback: generic XDP in
    /// the appliance, user space in the gateway.
    Auto,
    /// This mode, or an error.
    Only(AttachMode),
}

impl Setting {
    /// Every setting.
    pub const ALL: [Self; 3] = [
        Self::Only(AttachMode::Native),
        Self::Only(AttachMode::Generic),
        Self::Auto,
    ];

    /// The value in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(mode) => mode.name(),
        }
    }

    /// Whether a program that runs in `mode` satisfies the setting.
    #[must_use]
    pub fn allows(self, mode: AttachMode) -> bool {
        self == Self::Auto || self == Self::Only(mode)
    }

    /// The modes that satisfy the setting, the preferred one first.
    pub fn modes(self) -> impl Iterator<Item = AttachMode> {
        AttachMode::ALL
            .into_iter()
            .filter(move |mode| self.allows(*mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for mode in AttachMode::ALL {
            assert_eq!(AttachMode::parse(mode.name()), Some(mode));
        }
        assert_eq!(AttachMode::parse("auto"), None);
        assert_eq!(
            Setting::ALL.map(Setting::name),
            ["native", "generic", "auto"]
        );
    }

    #[test]
    fn only_auto_allows_a_second_mode() {
        let modes = |setting: Setting| setting.modes().collect::<Vec<_>>();
        assert_eq!(
            modes(Setting::Auto),
            [AttachMode::Native, AttachMode::Generic]
        );
        for mode in AttachMode::ALL {
            assert_eq!(modes(Setting::Only(mode)), [mode]);
        }
    }
}
