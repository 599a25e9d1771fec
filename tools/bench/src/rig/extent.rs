//! How much a run measures: enough for figures, or only enough to see that each case works.

/// How much a run measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Enough for figures.
    Full,
    /// `--smoke`: enough to see that each case works.
    Smoke,
}

/// An amount of load, such as packets, connections or time, for each extent.
#[derive(Clone, Copy, Debug)]
pub struct Amount<T> {
    /// For [`Extent::Full`].
    pub full: T,
    /// For [`Extent::Smoke`].
    pub smoke: T,
}

impl<T: Copy> Amount<T> {
    /// The amount for an extent.
    pub const fn of(&self, extent: Extent) -> T {
        match extent {
            Extent::Full => self.full,
            Extent::Smoke => self.smoke,
        }
    }
}
