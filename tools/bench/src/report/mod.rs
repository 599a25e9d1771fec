//! The report of a benchmark: rows, ratios, aims.

pub mod figures;

use serde::Serialize;

use self::figures::Role;

/// A benchmark's result. Its JSON form is stable.
#[derive(Serialize)]
pub struct Report {
    bench: &'static str,
    machine: String,
    kernel: String,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    skipped: Vec<Skipped>,
}

/// One case of one contender.
#[derive(Serialize)]
struct Row {
    case: String,
    contender: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    runs: usize,
}

/// A ratio of medians, and its aim.
#[derive(Serialize)]
struct Ratio {
    name: String,
    value: f64,
    /// Such as `<= 8` or `>= 5`; empty without an aim.
    aim: String,
    met: bool,
}

/// A contender that could not run.
#[derive(Serialize)]
struct Skipped {
    contender: String,
    why: String,
    /// Whether it should have run here, so that a smoke run has failed.
    is_failure: bool,
}

/// Units of figures that are 0 if the load was short or nothing was lost: CPU time has a resolution
/// of 10 ms.
const MAY_BE_ZERO: [&str; 3] = ["s/GB", "CPUs", "each"];

/// The aim of a ratio.
#[derive(Clone, Copy)]
pub enum Aim {
    /// At most.
    Most(f64),
    /// At least.
    Least(f64),
}

impl Report {
    /// An empty report that names this machine.
    pub fn new(bench: &'static str) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu
            .lines()
            .find_map(|l| l.strip_prefix("model name"))
            .map_or("unknown CPU", |m| m.trim_start_matches(['\t', ' ', ':']));
        let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
        Self {
            bench,
            machine: format!("{model}, {cores} cores"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            rows: Vec::new(),
            ratios: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Adds the values of a case; returns their median.
    pub fn row(
        &mut self,
        case: impl Into<String>,
        contender: impl Into<String>,
        unit: &'static str,
        mut values: Vec<f64>,
    ) -> f64 {
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
        self.rows.push(Row {
            case: case.into(),
            contender: contender.into(),
            unit,
            median,
            min: values.first().copied().unwrap_or(f64::NAN),
            max: values.last().copied().unwrap_or(f64::NAN),
            runs: values.len(),
        });
        median
    }

    /// Adds a ratio.
    pub fn ratio(&mut self, name: impl Into<String>, value: f64, aim: Option<Aim>) {
        let (aim, met) = match aim {
            Some(Aim::Most(most)) => (format!("<= {most}"), value <= most),
            Some(Aim::Least(least)) => (format!(">= {least}"), value >= least),
            None => (String::new(), true),
        };
        self.ratios.push(Ratio {
            name: name.into(),
            value,
            aim,
            met,
        });
    }

    /// Names and values of the ratios.
    #[cfg(test)]
    pub fn ratios(&self) -> Vec<(&str, f64)> {
        let named = self.ratios.iter().map(|r| (r.name.as_str(), r.value));
        named.collect()
    }

    /// Whether a contender takes part in further runs after the `result` of one. Reports a failure,
    /// unless the user interrupted the run.
    pub fn retain(&mut self, name: &str, run: &str, result: anyhow::Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(_) if lab::interrupt::check().is_err() => true,
            Err(error) => {
                let why = format!("{run}: {error:#}");
                eprintln!("  no further runs of {name}: {why}");
                self.omit(name, why);
                false
            }
        }
    }

    /// Reports a contender that cannot run on this machine. A peer may be absent, such as another
    /// project's program that is not installed.
    pub fn skip(&mut self, contender: impl Into<String>, role: Role, why: impl Into<String>) {
        self.skipped.push(Skipped {
            contender: contender.into(),
            why: why.into(),
            is_failure: role != Role::Peer,
        });
    }

    /// Reports a contender that should have run. The run goes on without it; a smoke run has
    /// failed.
    pub fn omit(&mut self, contender: impl Into<String>, why: impl Into<String>) {
        self.skipped.push(Skipped {
            contender: contender.into(),
            why: why.into(),
            is_failure: true,
        });
    }

    /// Whether each case of a smoke run has worked.
    ///
    /// # Errors
    /// If a contender failed, a figure is not a number above 0, or there is no figure of Causeway.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut problems = Vec::new();
        for s in self.skipped.iter().filter(|s| s.is_failure) {
            problems.push(format!("{}: {}", s.contender, s.why));
        }
        for r in &self.rows {
            let may_be_zero = MAY_BE_ZERO.contains(&r.unit) && r.min == 0.0;
            if !(r.min > 0.0 && r.max.is_finite() || may_be_zero) {
                let (case, contender) = (&r.case, &r.contender);
                problems.push(format!("{contender}: {case}: {} {}", r.min, r.unit));
            }
        }
        if !self
            .rows
            .iter()
            .any(|r| r.contender.starts_with("causeway"))
        {
            problems.push("no figure of Causeway".to_owned());
        }
        anyhow::ensure!(
            problems.is_empty(),
            "{}: these cases failed:\n  {}",
            self.bench,
            problems.join("\n  ")
        );
        Ok(())
    }

    /// Prints the report as a table.
    pub fn print(&self) {
        self.print_rows();
        for r in &self.ratios {
            let verdict = match (r.aim.is_empty(), r.met) {
                (true, _) => String::new(),
                (false, true) => format!("aim {}: met", r.aim),
                (false, false) => format!("aim {}: NOT MET", r.aim),
            };
            service::outln!("{:<60} {:>8.2}  {verdict}", r.name, r.value);
        }
        self.print_skipped();
    }

    /// Prints the rows of a smoke run, and that they mean nothing.
    pub fn print_smoke(&self) {
        self.print_rows();
        self.print_skipped();
        service::outln!("smoke run: the figures mean nothing");
    }

    fn print_skipped(&self) {
        for s in &self.skipped {
            service::outln!("skipped: {}: {}", s.contender, s.why);
        }
    }

    fn print_rows(&self) {
        service::outln!(
            "{} on {}, Linux {}\n",
            self.bench,
            self.machine,
            self.kernel
        );
        service::outln!(
            "{:<44} {:<24} {:>12} {:>12} {:>12}  unit, of runs",
            "case",
            "contender",
            "median",
            "min",
            "max"
        );
        for r in &self.rows {
            service::outln!(
                "{:<44} {:<24} {:>12.2} {:>12.2} {:>12.2}  {}, {}",
                r.case,
                r.contender,
                r.median,
                r.min,
                r.max,
                r.unit,
                r.runs
            );
        }
        service::outln!();
    }

    /// The ratios as bars, in SVG.
    pub fn svg(&self) -> String {
        let height = 40 + 24 * self.ratios.len();
        let most = self.ratios.iter().map(|r| r.value).fold(1.0, f64::max);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <text x=\"10\" y=\"20\">{}: {}, Linux {}</text>\n",
            self.bench, self.machine, self.kernel
        );
        for (i, r) in self.ratios.iter().enumerate() {
            let y = 36 + 24 * i;
            let width = r.value / most * 330.0;
            let colour = if r.met { "#3a7" } else { "#c63" };
            out += &format!(
                "<text x=\"10\" y=\"{}\">{}</text>\
                 <rect x=\"460\" y=\"{y}\" width=\"{width:.0}\" height=\"16\" fill=\"{colour}\"/>\
                 <text x=\"{:.0}\" y=\"{}\">{:.2} {}</text>\n",
                y + 13,
                r.name.replace('<', "&lt;"),
                466.0 + width,
                y + 13,
                r.value,
                r.aim.replace('<', "&lt;").replace('>', "&gt;"),
            );
        }
        out + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut Report)) -> String {
        let mut report = Report::new("plain");
        report.row("packets", "causeway", "Mpps", vec![1.0]);
        change(&mut report);
        let checked = report.check();
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_smoke_run_fails_by_an_absent_figure_and_by_a_failed_contender() {
        let fails = |change: fn(&mut Report), text: &str| {
            let problems = problems(change);
            assert!(problems.contains(text), "{problems:?} has no {text:?}");
        };
        fails(
            |r| {
                r.row("TCP", "peer", "Gbit/s", vec![0.0]);
            },
            "peer: TCP: 0 Gbit/s",
        );
        fails(
            |r| {
                r.row("TCP", "peer", "Gbit/s", Vec::new());
            },
            "peer: TCP: NaN Gbit/s",
        );
        fails(
            |r| {
                r.row("TCP", "peer", "Gbit/s", vec![f64::INFINITY]);
            },
            "peer: TCP: inf Gbit/s",
        );
        fails(
            |r| {
                r.retain("peer", "run 1", Err(anyhow::anyhow!("it does not start")));
            },
            "peer: run 1: it does not start",
        );
        fails(
            |r| r.skip("causeway", Role::Causeway, "the program is missing"),
            "causeway: the program is missing",
        );
        fails(|r| r.rows.clear(), "no figure of Causeway");
    }

    #[test]
    fn a_smoke_run_passes_without_other_programs_and_by_costs_of_zero() {
        let found = problems(|r| {
            r.skip("socat", Role::Peer, "it is not installed");
            r.row("TCP, CPU", "causeway", "s/GB", vec![0.0]);
        });
        assert_eq!(found, "");
    }
}
