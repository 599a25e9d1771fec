//! Figures over several runs, grouped by case and contender.

use super::Report;

/// The role of a contender in a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It does none of the measured work: the cost of the topology itself.
    Floor,
    /// Another project's program that does the same work.
    Peer,
    Causeway,
}

/// One case of one contender, over the runs.
struct Figure {
    case: String,
    contender: &'static str,
    role: Role,
    unit: &'static str,
    values: Vec<f64>,
}

/// All figures of a benchmark, over the runs.
#[derive(Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds the figure of one run.
    pub fn add(
        &mut self,
        case: String,
        contender: &'static str,
        role: Role,
        unit: &'static str,
        value: f64,
    ) {
        let same = |f: &&mut Figure| f.case == case && f.contender == contender && f.unit == unit;
        match self.0.iter_mut().find(same) {
            Some(figure) => figure.values.push(value),
            None => self.0.push(Figure {
                case,
                contender,
                role,
                unit,
                values: vec![value],
            }),
        }
    }

    /// Adds rows to the report, the contenders of a case one below the other; returns the medians.
    pub fn report(self, report: &mut Report) -> Vec<Median> {
        let mut cases: Vec<(String, &'static str)> = Vec::new();
        for f in &self.0 {
            if !cases
                .iter()
                .any(|(case, unit)| *case == f.case && *unit == f.unit)
            {
                cases.push((f.case.clone(), f.unit));
            }
        }
        let mut medians = Vec::new();
        for (case, unit) in cases {
            for f in self.0.iter().filter(|f| f.case == case && f.unit == unit) {
                medians.push(Median {
                    case: case.clone(),
                    contender: f.contender,
                    role: f.role,
                    unit,
                    value: report.row(case.clone(), f.contender, unit, f.values.clone()),
                });
            }
        }
        medians
    }
}

/// The median of one case of one contender.
pub struct Median {
    pub case: String,
    pub contender: &'static str,
    pub role: Role,
    pub unit: &'static str,
    pub value: f64,
}
