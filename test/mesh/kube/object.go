package kube

import (
	"encoding/json"
	"fmt"
)

// Object is a Kubernetes object as JSON decodes it.
type Object map[string]any

// Name is metadata.name.
func (o Object) Name() string { return o.String("metadata", "name") }

// String returns the text at a path of keys; empty when there is none.
func (o Object) String(path ...string) string {
	s, _ := o.at(path).(string)
	return s
}

// Labels returns the map of texts at a path of keys, as of metadata.labels.
func (o Object) Labels(path ...string) map[string]string {
	m, ok := o.at(path).(map[string]any)
	if !ok {
		return nil
	}
	labels := map[string]string{}
	for k, v := range m {
		labels[k] = fmt.Sprint(v)
	}
	return labels
}

// Condition returns status and message of the condition of a type in status.conditions; empty when there is none.
func (o Object) Condition(kind string) (status, message string) {
	conditions, _ := o.at([]string{"status", "conditions"}).([]any)
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == kind {
			return Object(c).String("status"), Object(c).String("message")
		}
	}
	return "", ""
}

// JSON is the object as text, for messages.
func (o Object) JSON() string {
	b, err := json.Marshal(o)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (o Object) at(path []string) any {
	var v any = map[string]any(o)
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}
