//! The older of two text formats.

/// OpenMetrics text in the older Prometheus format (0.0.4), in which a family has the name of its samples, and there are
/// neither `# EOF` nor `# UNIT` nor the type `info`.
pub fn prometheus_text(open_metrics: &str) -> String {
    let lines: Vec<&str> =
        open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for (at, line) in lines.iter().enumerate() {
        // A family's help stands before its type.
        let typed = [Some(line), lines.get(at + 1)].into_iter().flatten().find_map(|line| line.strip_prefix("# TYPE "));
        let renamed = line.strip_prefix("# ").and_then(|rest| {
            let (kind, rest) = rest.split_once(' ')?;
            let (name, rest) = rest.split_once(' ')?;
            match typed.and_then(|typed| typed.strip_prefix(name)?.strip_prefix(' '))? {
                "counter" => Some(format!("# {kind} {name}_total {rest}")),
                "info" if kind == "TYPE" => Some(format!("# {kind} {name}_info gauge")),
                "info" => Some(format!("# {kind} {name}_info {rest}")),
                _ => None,
            }
        });
        text.push_str(renamed.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_named_as_their_samples() {
        let open_metrics = "\
# HELP a_calls Calls.
# TYPE a_calls counter
a_calls_total{x=\"1\"} 2
# HELP a_build This.
# TYPE a_build info
a_build_info{v=\"1\"} 1
# HELP a_calls_now Calls now.
# TYPE a_calls_now gauge
# UNIT a_calls_now calls
a_calls_now 3
# EOF
";
        let text = "\
# HELP a_calls_total Calls.
# TYPE a_calls_total counter
a_calls_total{x=\"1\"} 2
# HELP a_build_info This.
# TYPE a_build_info gauge
a_build_info{v=\"1\"} 1
# HELP a_calls_now Calls now.
# TYPE a_calls_now gauge
a_calls_now 3
";
        assert_eq!(prometheus_text(open_metrics), text);
    }
}
